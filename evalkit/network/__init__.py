"""Anybody's model behind one interface: load it, check what it returns, test that it does not look ahead."""
