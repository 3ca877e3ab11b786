"""Feature passes shared by the selection methods."""
