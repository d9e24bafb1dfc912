"""Tables of operations around the experts: reading, fitting, leaving out, writing the files."""
