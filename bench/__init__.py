"""For us: figures that anyone can make again, all of one run, and pages that are generated."""
