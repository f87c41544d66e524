"""The web application: sign up, look at the job that sends the mail, mend what could not be sent.

Run it with ``python -m examples.signup`` or ``uvicorn examples.signup.app:app``. The dashboard and the admin routes are
there only when ``DEMO_ADMIN_TOKEN`` is set. Programs send it as ``Authorization: Bearer <token>``; people give it to
their browser as a password, under any name.
"""

import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Final

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer
from pydantic import BaseModel

from durableq import Job, JobNotFound, JobState
from durableq.dashboard import dashboard
from durableq.fastapi import BackgroundTasks, admin_router
from examples.signup.tasks import Email, Name, dq, send_welcome

logger = logging.getLogger("examples.signup")

TOKEN_VARIABLE: Final = "DEMO_ADMIN_TOKEN"

app = FastAPI(title="Sign-up", lifespan=dq.lifespan)


class SignUp(BaseModel):
    """Who wants to join."""

    email: Email
    name: Name


class Accepted(BaseModel):
    """A sign-up that will be seen through: its job is on disk when this is sent."""

    job: str


class JobStatus(BaseModel):
    """How far a job is. Its arguments are not shown: whoever knows the id need not be the one who signed up."""

    id: str
    state: JobState
    attempt: int
    max_attempts: int
    next_attempt_at: datetime | None
    error: str | None


@app.post("/signup", status_code=202)
async def sign_up(person: SignUp, background_tasks: BackgroundTasks) -> Accepted:
    """Accept a sign-up; the welcome mail follows, whatever happens to this process."""
    job = background_tasks.add_task(send_welcome, person.email, person.name)
    return Accepted(job=job.id)


@app.get("/jobs/{job_id}")
async def job_status(job_id: str) -> JobStatus:
    """Say how far a job is."""
    try:
        job = await dq.get(job_id)
    except JobNotFound as error:
        raise HTTPException(404, "no such job") from error
    return _status_of(job)


def _status_of(job: Job[None]) -> JobStatus:
    return JobStatus(
        id=job.id,
        state=job.state,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        next_attempt_at=job.run_at if job.state is JobState.SCHEDULED else None,
        error=None if job.error is None else f"{job.error.type}: {job.error.message}",
    )


# -- for operators -------------------------------------------------------------------------------------------

bearer = HTTPBearer(auto_error=False, description=f"What {TOKEN_VARIABLE} was set to when the app was started.")
password = HTTPBasic(auto_error=False, description="The same as a password, under any name.")


def requires(token: str) -> Callable[..., Awaitable[str]]:
    """Return a dependency that lets only those in who know ``token``; it gives the name for the audit trail."""

    async def operator(
        program: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        person: Annotated[HTTPBasicCredentials | None, Depends(password)],
    ) -> str:
        given = program.credentials if program else person.password if person else ""
        # In constant time: an ordinary comparison takes the longer, the more of the token was guessed.
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "the admin token is needed here", headers={"WWW-Authenticate": "Basic"})
        return "operator" if person is None else person.username or "operator"

    return operator


def mount_admin(app: FastAPI, token: str | None) -> None:
    """Give the app its dashboard and admin routes, or say why it has none: there is no default password."""
    if not token:
        logger.warning("no admin routes: set %s to a secret of your own to have them under /admin", TOKEN_VARIABLE)
        return
    operator = Depends(requires(token))
    app.include_router(admin_router(dq, auth=operator), prefix="/admin")
    app.include_router(dashboard(dq, auth=operator), prefix="/durableq")


mount_admin(app, os.environ.get(TOKEN_VARIABLE))
