"""Why a page was not shown or an action not done: raised in any screen, it becomes a page that says what to do."""


class Refused(Exception):
    """A request that is not done. ``title`` says what is wrong, ``text`` what to do about it.

    ``job`` is the path of the job that it is about, to lead there.
    """

    def __init__(self, status: int, title: str, text: str, job: str = "") -> None:
        super().__init__(f"{status} {title}: {text}")
        self.status = status
        self.title = title
        self.text = text
        self.job = job
