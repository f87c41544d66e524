"""More of `tests.type_samples`: how tasks are registered, as functions and as classes, and their options."""

from typing import Final

TASKS: Final = {
    "a task keeps its signature and its raw result": """
        @dq.task
        async def send(email: str) -> int: ...

        @dq.task(max_attempts=3, queue="mail")
        def draw(page: int) -> str: ...

        kept: Task[[str], Coroutine[Any, Any, int]] = send
        also_kept: Task[[int], str] = draw
        changed: Task[[int], Coroutine[Any, Any, int]] = send  # refused
        awaited: Task[[str], int] = send  # refused

        async def use() -> None:
            assert_type(await dq.add_task(send, "ada"), Job[int])
            assert_type(await dq.add_task(draw, 1), Job[str])
            await dq.add_task(send, 42)  # refused
            await dq.add_task(draw)  # refused
    """,
    "a unit test calls a task as the function that it is": """
        @dq.task
        async def send(email: str) -> int: ...

        @dq.task(name="draw", aliases=["paint"])
        def draw(page: int) -> str: ...

        async def test_send() -> None:
            assert_type(await send("ada"), int)
            assert_type(draw(1), str)
            assert_type(send.name, str)
            await send(42)  # refused
            await send()  # refused
            draw("1")  # refused
            await draw(1)  # refused
            send("ada") + 1  # refused
    """,
    "a function may be registered without the decorator's syntax": """
        welcome = dq.task(send_welcome)
        careful = dq.task(max_attempts=9)(send_welcome)

        async def use() -> None:
            assert_type(await dq.add_task(welcome, "ada"), Job[int])
            assert_type(await dq.add_task(careful, "ada"), Job[int])
            await dq.add_task(welcome, 42)  # refused
            await dq.add_task(careful, 42)  # refused
    """,
    "options do not change what a task takes and gives": """
        @dq.task
        async def send(email: str) -> int: ...

        async def add(background_tasks: BackgroundTasks, session: Session) -> None:
            assert_type(await send.options(delay=60)("ada"), int)
            assert_type(await dq.add_task(send.options(delay=60), "ada"), Job[int])
            assert_type(dq.within(session).add_task(send.options(delay=60), "ada"), Job[int])
            assert_type(background_tasks.add_task(send.options(delay=60), "ada"), Job[int])
            await dq.add_task(send.options(delay=60), 42)  # refused
            background_tasks.add_task(send.options(delay=60), 42)  # refused
            await dq.add_task(send, "ada", delay=60)  # refused
    """,
    "the options of a task are checked by name and type": """
        def on_dead(job: Job[Any], error: BaseException) -> None: ...

        @dq.task(
            name="send", aliases=["mail"], queue="mail", priority=5, max_attempts=3, retry=RetryPolicy(), delay=1.5,
            expires=60, timeout=timedelta(seconds=5), deadline=3600, unique=Unique(args=["email"]), result_ttl=0,
            tags=["a"], headers={"tenant": "x"}, retry_on=(OSError, ValueError), give_up_on=KeyError, runner="loop",
            on_success=None, on_retry=on_dead, on_dead=on_dead,
        )
        async def send(email: str) -> int: ...

        @dq.task(max_atempts=3)  # refused
        async def misspelt(email: str) -> int: ...

        @dq.task(max_attempts="3")  # refused
        async def mistyped(email: str) -> int: ...

        @dq.task(runner="fork")  # refused
        def nowhere() -> None: ...

        @dq.task(retry_on="OSError")  # refused
        def not_a_type() -> None: ...

        @dq.task(aliases=[1])  # refused
        def not_a_name() -> None: ...

        @dq.task(on_dead="log it")  # refused
        def not_callable() -> None: ...

        @dq.task("mail")  # refused
        def by_position() -> None: ...
    """,
    "the options of a single job are checked by name and type": """
        @dq.task
        async def send(email: str) -> int: ...

        gentle = dq.retry_policy("gentle", max_wait=60)
        assert_type(gentle, RetryPolicy)
        send.options(
            queue="slow", priority=1, max_attempts=2, retry=gentle, delay=timedelta(minutes=1), expires=60, timeout=5,
            deadline=3600, unique="ada", result_ttl=None, tags=("a", "b"), headers={"tenant": "x"},
        )
        send.options(run_at=datetime(2026, 1, 1), idempotency_key="x")
        send.options(unique=Unique(args=["email"], period=timedelta(hours=1), on_conflict="replace"))
        send.options(dealy=1)  # refused
        send.options(priority="high")  # refused
        send.options(run_at="tomorrow")  # refused
        send.options(tags=[1])  # refused
        send.options(headers={"tenant": 1})  # refused
        send.options(unique=1)  # refused
        send.options(retry="gentle")  # refused
        Unique(on_conflict="overwrite")  # refused
        Unique(args=[1])  # refused
    """,
    "what is code cannot be changed for a single job": """
        @dq.task
        async def send(email: str) -> int: ...

        def on_dead(job: Job[Any], error: BaseException) -> None: ...

        send.options(retry_on=(OSError,))  # refused
        send.options(give_up_on=(OSError,))  # refused
        send.options(runner="thread")  # refused
        send.options(on_success=None)  # refused
        send.options(on_retry=on_dead)  # refused
        send.options(on_dead=on_dead)  # refused
        send.options(name="other")  # refused
        send.options(aliases=["other"])  # refused
    """,
    "what is injected is optional for callers": """
        def get_db() -> Session: ...

        Db = Annotated[Session, Depends(get_db)]

        @dq.task
        async def send(email: str, *, db: Db = INJECTED) -> int: ...

        @dq.task(queue="mail")
        def draw(page: int, db: Session = Depends(get_db)) -> str: ...

        async def use(background_tasks: BackgroundTasks, session: Session) -> None:
            assert_type(await dq.add_task(send, "ada"), Job[int])
            assert_type(await dq.add_task(draw, 1), Job[str])
            assert_type(background_tasks.add_task(send, "ada"), Job[int])
            assert_type(await send("ada", db=session), int)
            await send("ada", db="session")  # refused
            await dq.add_task(send, 42)  # refused
            await dq.add_task(send)  # refused
    """,
}

CLASSES: Final = {
    "a class is a task of what its run takes and gives": """
        @dq.task
        class SendInvoice:
            queue = "mail"
            max_attempts = 3

            async def run(self, order_id: int) -> str: ...

            def on_dead(self, job: Job[Any], error: BaseException) -> None: ...

        @dq.task
        class Draw:
            def run(self, page: int, *, title: str = "") -> list[str]: ...

        async def use(background_tasks: BackgroundTasks, session: Session, connection: AsyncConnection) -> None:
            assert_type(background_tasks.add_task(SendInvoice, 1), Job[str])
            assert_type(background_tasks.add_task(Draw, 1), Job[list[str]])
            assert_type(dq.within(session).add_task(SendInvoice, 1), Job[str])
            assert_type(await dq.within(connection).add_task(Draw, 1), Job[list[str]])
            background_tasks.add_task(SendInvoice, "1")  # refused
            dq.within(session).add_task(SendInvoice, "1")  # refused
            await dq.within(connection).add_task(Draw, "1")  # refused
            assert_type(await dq.add_task(SendInvoice, 1), Job[str])
            assert_type(await dq.add_task(Draw, 1, title="x"), Job[list[str]])
            assert_type(dq.add_task_sync(SendInvoice, 1), Job[str])
            assert_type(dq.add_task_sync(Draw, 1), Job[list[str]])
            assert_type(call(SendInvoice, 1), Call[str])
            assert_type(call(Draw, 1), Call[list[str]])
            assert_type(current_job().add_task(SendInvoice, order_id=1), Job[str])
            assert_type(current_job().add_task(Draw, 1), Job[list[str]])
            await dq.add_task(SendInvoice, "1")  # refused
            await dq.add_task(SendInvoice, 1, 2)  # refused
            await dq.add_task(SendInvoice, order=1)  # refused
            await dq.add_task(Draw, 1, title=2)  # refused
            dq.add_task_sync(Draw, "1")  # refused
            call(Draw, "1")  # refused
            current_job().add_task(SendInvoice, "1")  # refused
    """,
    "a class is a task with options in parentheses too": """
        @dq.task(queue="mail")
        class SendInvoice:
            async def run(self, order_id: int) -> str: ...

        @dq.task(name="draw")
        class Draw:
            def run(self, page: int) -> list[str]: ...

        async def use() -> None:
            assert_type(await dq.add_task(SendInvoice, 1), Job[str])
            assert_type(await dq.add_task(Draw, 1), Job[list[str]])
            await dq.add_task(SendInvoice, "1")  # refused
            await dq.add_task(Draw, "1")  # refused

        @dq.task(quue="mail")  # refused
        class Misspelt:
            async def run(self, order_id: int) -> str: ...
    """,
    # mypy takes a decorated class for the class that it was, whatever the decorator returns; so it does not know the
    # options of `SendInvoice` above. `dq.task(...)`, called, is the way for those who need them.
    "a class that is registered by a call has options, and can be called": """
        class SendInvoice:
            async def run(self, order_id: int) -> str: ...

        class Draw:
            def run(self, page: int) -> list[str]: ...

        send_invoice = dq.task(SendInvoice)
        draw = dq.task(queue="slow")(Draw)

        async def use() -> None:
            assert_type(await dq.add_task(send_invoice.options(delay=60), 1), Job[str])
            assert_type(await dq.add_task(draw.options(delay=60), 1), Job[list[str]])
            assert_type(await send_invoice(1), str)
            assert_type(draw(1), list[str])
            await dq.add_task(send_invoice.options(delay=60), "1")  # refused
            await dq.add_task(send_invoice)  # refused
            await send_invoice("1")  # refused
            draw()  # refused
            send_invoice.options(dealy=60)  # refused
    """,
    "only pyright sees all of a decorated class": """
        @dq.task
        class SendInvoice:
            async def run(self, order_id: int) -> str: ...

        async def use() -> None:
            assert_type(await SendInvoice(1), str)  # refused by mypy
            await dq.add_task(SendInvoice.options(delay=60), 1)  # refused by mypy
            await dq.add_task(SendInvoice)  # refused by pyright
    """,
}
