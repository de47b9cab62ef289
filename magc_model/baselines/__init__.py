"""Learned codecs that MAGC is measured against: CompressAI's networks, our fine-tunes of them, and their files."""
