from heed.main import app

app()
