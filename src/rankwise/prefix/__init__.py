"""The part of a network below everything that trains: the same in every epoch, so it need not run in every epoch."""
