"""What belongs to an optimizer step: parameters, schedule, shares of a loss, averages."""
