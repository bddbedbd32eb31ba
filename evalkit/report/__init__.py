"""Read score reports back, and render one as a page."""
