"""Items: the routes, and that a request which may write ends what is kept of them."""

from fastapi import APIRouter

from app.cached import changes
from app.items.routes import router as routes

router = APIRouter(dependencies=[changes("items")])
router.include_router(routes)
