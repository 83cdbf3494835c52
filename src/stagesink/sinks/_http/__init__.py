"""HTTP as every sink needs it that speaks it itself: connections, request bodies, what a status means."""
