"""What each kind of stage does."""
