"""For operators: what checks the chart's rules, and makes its dashboards and the table of metrics. Not installed."""
