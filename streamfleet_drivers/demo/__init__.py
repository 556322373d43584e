"""`streamfleet demo`: a fleet at work, a worker and the server killed on the way, and an account of every task."""
