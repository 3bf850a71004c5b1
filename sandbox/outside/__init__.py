"""The trusted side: it starts programs, talks to them and grades what they answer."""
