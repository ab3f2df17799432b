"""Many runs that answer one question: which jobs, what they share, each a process of its own, what came of them."""
