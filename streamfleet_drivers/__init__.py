"""Drivers for the protocol of Streamfleet: they execute what the machines want done. All policy is in the machines.

Choose one: `streamfleet_drivers.asyncio`. Each has the same public names.
"""
