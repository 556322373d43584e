"""What the tests share: real servers, waiting for conditions, a TCP proxy with aimed faults."""
