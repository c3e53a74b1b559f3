"""What became of flows, told from their events once they are over: the report, the trace, and two runs side by side.

Nothing here is needed to run a flow. Bokeh and networkx, of the extra ``report``, are loaded to write a report only.
"""
