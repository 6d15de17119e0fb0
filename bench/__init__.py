"""For us: figures that anyone can make again, each a ratio or a rate of one run, and pages that are generated."""
