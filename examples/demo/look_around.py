"""After the demo: the app is left running for whoever sits at the terminal."""

import asyncio
import signal
from typing import Final

from examples.demo.mail import REFUSED
from examples.demo.site import Site

WORDS: Final = """
The app and the mail server are still running. Look around; Ctrl-C ends both.

  dashboard {site.url}/durableq
                 any name, and as the password {site.token}
  docs      {site.url}/docs
  admin     curl '{site.url}/admin/jobs?limit=3' \\
                 -H 'Authorization: Bearer {site.token}'
  sign up   curl {site.url}/signup \\
                 -H 'Content-Type: application/json' \\
                 -d '{{"email": "{refused}", "name": "Nobody"}}'
  database  {site.database}
  its log   {site.log}
  kill it   kill -9 {site.process.pid}
"""


async def leave_running(site: Site) -> None:
    """Say where to look, and return at Ctrl-C. Whoever kills the app sees it start again."""
    print(WORDS.format(site=site, refused=REFUSED), flush=True)
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, enough.set)
    async with asyncio.TaskGroup() as group:
        keeping_up = group.create_task(_keep_up(site))
        await enough.wait()
        keeping_up.cancel()


async def _keep_up(site: Site) -> None:
    while True:
        await site.process.wait()
        print("the app has ended; starting it again ...", flush=True)
        await site.start()
        print(f"pid {site.process.pid}", flush=True)
