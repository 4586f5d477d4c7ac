"""What people and CI read: report.html, report.md, gate.md, JUnit XML, each a pure function of the JSON."""
