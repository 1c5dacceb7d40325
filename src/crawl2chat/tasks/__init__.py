"""What can be asked, a worked answer, and how an answer is graded: one module a task.

Each has `examples(split, ...)`, an iterator of {"prompt": messages, "answer": str, "solution": str} with an optional
"calls": the tool calls that come before the solution, and `grade(completion, answer) -> float`. Train and test differ
in what is asked and in the wording. Splits are decided by a hash of the question, so they never move.
"""
