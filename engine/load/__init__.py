"""When a request may leave: schedules, arrival laws, rate limits, budgets, retries. No sockets."""
