"""What a decoded picture is worth: against its original, against its map, and as one of many."""
