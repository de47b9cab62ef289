"""Pictures of any size that lie somewhere: read and written by windows, coded by chunks, decoded from anywhere."""
