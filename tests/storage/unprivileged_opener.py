"""Opens a database as a user who is not root: ``python -m tests.storage.unprivileged_opener PATH``.

Says ``null``, or the type and text of the error.
"""

import asyncio
import codecs
import json
import os
import sys

from tests.storage.support import Backend

NOBODY = 65534


async def open_and_close(path: str) -> list[str] | None:
    backend = Backend(path)
    try:
        await backend.open()
        await backend.close()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


if __name__ == "__main__":
    if os.geteuid() == 0:
        import durableq.storage.sqlite.store  # noqa: F401 - while the code can be read

        codecs.lookup("unicode_escape")  # likewise: codecs are imported when first used
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    print(json.dumps(asyncio.run(open_and_close(sys.argv[1]))), flush=True)
