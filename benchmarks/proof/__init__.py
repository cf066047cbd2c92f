"""One command that turns a GPU at hand for some minutes into proof: what runs, what is equal, how fast, what not."""
