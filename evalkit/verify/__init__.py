"""Does a submission folder tell one story: statements read from its files, and claims checked against them."""
