"""What happened in a spool, as charts: ``summary`` reads the journals, ``page`` and ``figure`` draw what it found."""
