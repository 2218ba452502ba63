"""The day: board, exams, calendar, leftovers, figures."""
