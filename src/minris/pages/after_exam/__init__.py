"""After the exam: workitems, watchers, commitment."""
