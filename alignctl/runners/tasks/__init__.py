"""What each family of algorithms does at a step and at an evaluation; the loop itself is the same for all."""
