<html><body>403 Forbidden</body></html>
