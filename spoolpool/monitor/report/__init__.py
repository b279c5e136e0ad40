"""Report of the past work of a spool: ``summary`` reads the journals, ``page`` and ``figure`` draw the charts."""
