"""Shape Stories: a made-up video world whose captions tell what happens and in which order."""
