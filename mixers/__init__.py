"""Online experts and the mixers that combine them. Imports neither torch nor the other packages."""
