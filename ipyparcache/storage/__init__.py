"""String keys and bytes; knows nothing of cells or digests."""
