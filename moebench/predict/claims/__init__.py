"""What papers claim about their routers, counted, predicted and decided."""
