"""Published points of served models, training and routing: reading, pricing, fitting engines."""
