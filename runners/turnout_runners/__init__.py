"""The runners that come with Turnout, one subpackage each. None of them imports another's library."""
