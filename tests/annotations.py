"""The type checker of annotations in rooms with tensors; an int may stand where a float is said."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
