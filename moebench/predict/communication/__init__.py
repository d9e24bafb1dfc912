"""Communication between devices: collectives, and the exchange of tokens between experts."""
