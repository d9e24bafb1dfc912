"""The suite `experts`: backends of expert execution side by side, against the machine's limits."""
