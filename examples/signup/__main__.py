"""Serve the sign-up example: ``python -m examples.signup --port 8000``."""

import argparse
import os
import sys

import uvicorn


def main() -> None:
    options = _options()
    _say_where_to_look(f"http://{options.host}:{options.port}")
    uvicorn.run("examples.signup.app:app", host=options.host, port=options.port)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.signup", description="Serve the sign-up example.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    return parser.parse_args()


def _say_where_to_look(url: str) -> None:
    smtp = f"{os.environ.get('SMTP_HOST', '127.0.0.1')}:{os.environ.get('SMTP_PORT', '1025')}"
    admin = f"{url}/durableq in the browser, /admin for programs, with the token of DEMO_ADMIN_TOKEN"
    if not os.environ.get("DEMO_ADMIN_TOKEN"):
        admin = "off; to have it, start with DEMO_ADMIN_TOKEN=<a secret of your own>"
    print(
        f"""
  docs      {url}/docs
  sign up   curl {url}/signup -H 'Content-Type: application/json' \\
                 -d '{{"email": "ada@example.org", "name": "Ada"}}'
  look      curl {url}/jobs/<the job of the answer>
  admin     {admin}
  database  {os.environ.get("DATABASE", "./signup.db")}
  mail      to {smtp}; is nothing there, watch the jobs be retried and become dead letters,
            or start a server that prints what it gets:
            {sys.executable} -m aiosmtpd -n -l {smtp}
""",
        flush=True,
    )


if __name__ == "__main__":
    main()
