"""How errors are looked at: chains, groups, promises, hostile texts, own patterns."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time

import pytest

from resilient_ai import errors
from resilient_ai._resilience.failures import (
    VERDICTS,
    Classifier,
    Failure,
    FailureClass,
    FailureDetails,
    Pattern,
)

STICKY = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=x"
OOM = "Failed to allocate memory for requested buffer of size 1048576"


@pytest.fixture
def classifier():
    return Classifier()


def chained(outer, *, cause=None, context=None):
    outer.__cause__ = cause
    outer.__context__ = context
    outer.__suppress_context__ = cause is not None
    return outer


class TestChains:
    def test_the_cause_of_a_wrapper_is_found(self, classifier):
        """A wrapper that says nothing is looked through to its cause."""
        error = chained(errors.DeviceFailed("the gpu failed"), cause=RuntimeError(STICKY))
        assert classifier.classify(error).failure_class is FailureClass.POISONED

    def test_the_context_is_found(self, classifier):
        """An error raised while another was handled is looked through as well."""
        error = chained(KeyError("pid"), context=RuntimeError(STICKY))
        assert classifier.classify(error).failure_class is FailureClass.POISONED

    def test_a_suppressed_context_is_not_looked_at(self, classifier):
        """`raise ... from None` hides what is behind."""
        error = chained(KeyError("pid"), context=RuntimeError(STICKY))
        error.__suppress_context__ = True
        assert classifier.classify(error).failure_class is FailureClass.UNKNOWN

    def test_the_outermost_understood_wins(self, classifier):
        """An error that is understood is not looked behind."""
        error = chained(RuntimeError(OOM), cause=RuntimeError(STICKY))
        assert classifier.classify(error).failure_class is FailureClass.OOM

    def test_a_cycle_ends(self, classifier):
        """Errors that are one another's cause end the search, and the first one's text is kept."""
        first, second = RuntimeError("first"), RuntimeError("second")
        first.__cause__, second.__cause__ = second, first
        assert classifier.classify(first) == Failure(FailureClass.UNKNOWN, "first")

    def test_a_wrapper_tells_less_than_what_is_behind(self, classifier):
        """An unavailable device is an environment to be mended, unless its cause says more."""
        plain = errors.DeviceUnavailable("the gpu cannot be used")
        wrapped = chained(errors.DeviceUnavailable("the gpu cannot be used"), cause=EOFError())
        assert classifier.classify(plain).failure_class is FailureClass.ENVIRONMENT
        assert classifier.classify(wrapped).failure_class is FailureClass.WORKER_DIED


class TestGroups:
    def test_the_gravest_member_counts(self, classifier):
        """In a group the gravest failure decides, wherever it stands and however deep."""
        inner = ExceptionGroup("inner", [RuntimeError(OOM), RuntimeError(STICKY)])
        group = ExceptionGroup("outer", [errors.InvalidInput("bad"), inner])
        assert classifier.classify(group).failure_class is FailureClass.POISONED

    def test_callers_errors_alone_stay_the_callers(self, classifier):
        """A group of nothing but caller errors blames no device."""
        group = ExceptionGroup("all", [errors.InvalidInput("bad"), errors.InvalidInput("worse")])
        assert classifier.classify(group).failure_class is FailureClass.CALLER

    def test_what_is_not_understood_outweighs_the_callers_errors(self, classifier):
        """A group that may hide a device failure is not waved through as the caller's."""
        group = ExceptionGroup("all", [errors.InvalidInput("bad"), RuntimeError("who knows")])
        assert classifier.classify(group).failure_class is FailureClass.UNKNOWN

    def test_the_causes_of_all_backends_failed(self, classifier):
        """The error that carries every device's reason is judged by the gravest of them."""
        error = errors.AllBackendsFailed("all failed", causes=(RuntimeError(OOM), RuntimeError(STICKY)))
        assert classifier.classify(error).failure_class is FailureClass.POISONED

    def test_a_huge_group_is_looked_at_in_part(self, classifier):
        """A group of thousands costs no more than a few dozen errors, and stays the caller's."""
        group = ExceptionGroup("many", [errors.InvalidInput(str(n)) for n in range(5000)])
        assert classifier.classify(group).failure_class is FailureClass.CALLER

    def test_a_deep_group_ends(self, classifier):
        """Groups within groups within groups do not exhaust the stack."""
        group = ExceptionGroup("deepest", [RuntimeError(STICKY)])
        for _ in range(500):
            group = ExceptionGroup("deep", [group])
        assert classifier.classify(group).failure_class is FailureClass.UNKNOWN


class TestClasses:
    @pytest.mark.parametrize("error", [errors.InvalidInput, errors.ServiceClosed, errors.ConfigurationError])
    def test_a_caller_cannot_write_a_device_failure(self, classifier, error):
        """The text of a caller's error may quote anything; it never blames the device."""
        assert classifier.classify(error(f"unknown model {STICKY!r}")).failure_class is FailureClass.CALLER

    @pytest.mark.parametrize("error", [errors.ModelCorrupt, errors.ModelNotFound])
    def test_model_errors_are_the_models(self, classifier, error):
        """Our own model errors are the model's whatever their text."""
        assert classifier.classify(error(STICKY)).failure_class is FailureClass.MODEL

    @pytest.mark.parametrize(
        "error",
        [KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), concurrent.futures.CancelledError()],
    )
    def test_cancellation_is_neutral(self, classifier, error):
        """Who stops a call says nothing about the device."""
        assert classifier.classify(error).failure_class is FailureClass.CANCELLED

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (EOFError(), FailureClass.WORKER_DIED),
            (BrokenPipeError(), FailureClass.WORKER_DIED),
            (ConnectionResetError(), FailureClass.WORKER_DIED),
            (TimeoutError(), FailureClass.HANG),
            (errors.DeadlineExceeded("too late"), FailureClass.HANG),
            (errors.Overloaded("full"), FailureClass.TRANSIENT),
            (MemoryError(), FailureClass.OOM),
            (type("OutOfMemoryError", (RuntimeError,), {})("no text"), FailureClass.OOM),
            (type("EPFail", (Exception,), {})("no text"), FailureClass.EP_BUILD),
            (type("InvalidArgument", (Exception,), {})("no text"), FailureClass.CALLER),
            (type("DeviceReset", (Exception,), {})("no text"), FailureClass.DEVICE_RESET),
            (errors.DeviceFailed("no text"), FailureClass.UNKNOWN),
            (ValueError("no text"), FailureClass.UNKNOWN),
            (TypeError("no text"), FailureClass.UNKNOWN),
        ],
    )
    def test_the_class_tells_where_the_text_does_not(self, classifier, error, expected):
        """A silent error is judged by its class; a builtin ValueError or TypeError says nothing."""
        assert classifier.classify(error).failure_class is expected

    def test_the_text_comes_before_the_class(self, classifier):
        """A text that is understood outweighs the class that carries it."""
        assert classifier.classify(TimeoutError(STICKY)).failure_class is FailureClass.POISONED

    def test_an_error_that_cannot_be_printed(self, classifier):
        """An error whose text raises is still classified."""

        class Unprintable(EOFError):
            def __str__(self):
                raise RuntimeError("no")

        assert classifier.classify(Unprintable()).failure_class is FailureClass.WORKER_DIED


class TestAbsurdSizes:
    def test_no_card_is_that_large(self, classifier):
        """Asking for 64 TiB is not running out of memory but garbage."""
        failure = classifier.classify(RuntimeError(f"requested buffer of size {2**46}"))
        assert failure.failure_class is FailureClass.UNKNOWN
        failure = classifier.classify(
            RuntimeError(f"Failed to allocate memory for requested buffer of size {2**46}")
        )
        assert failure.failure_class is FailureClass.POISONED
        below = classifier.classify(
            RuntimeError(f"Failed to allocate memory for requested buffer of size {2**46 - 1}")
        )
        assert below.failure_class is FailureClass.OOM

    def test_the_card_is_the_limit_when_known(self, classifier):
        """Asking for the whole card or more at once is garbage; for less is not."""
        assert (
            classifier.classify(RuntimeError(OOM), card_total_bytes=2**20).failure_class
            is FailureClass.POISONED
        )
        assert (
            classifier.classify(RuntimeError(OOM), card_total_bytes=2**20 + 1).failure_class
            is FailureClass.OOM
        )

    def test_it_can_be_switched_off(self):
        """A caller who knows better turns the rule off."""
        text = f"Failed to allocate memory for requested buffer of size {2**50}"
        assert Classifier(absurd_bytes=None).classify(RuntimeError(text)).failure_class is FailureClass.OOM


class TestDetails:
    def test_numbers_are_read(self, classifier):
        """The size, the CUDA code and the device are taken from the text."""
        assert classifier.classify(RuntimeError(OOM)).details == FailureDetails(requested_bytes=1048576)
        assert classifier.classify(RuntimeError(STICKY)).details == FailureDetails(cuda_code=700, gpu=0)

    @pytest.mark.parametrize("gpu", ["-1", "32764", "1055442736"])
    def test_a_garbage_device_is_none(self, classifier, gpu):
        """A device number that is an uninitialised integer is not reported."""
        failure = classifier.classify(
            RuntimeError(f"CUDA failure 3: initialization error ; GPU={gpu} ; expr=x")
        )
        assert failure.details == FailureDetails(cuda_code=3)


class TestOwnPatterns:
    def test_extra_patterns_go_first(self):
        """A user's pattern outweighs the built-in ones and fills its hint from the match."""
        own = Pattern("mine", FailureClass.TRANSIENT, r"CUDA failure (?P<n>\d+)", "number {n}, {{as is}}")
        failure = Classifier(extra=[own]).classify(RuntimeError(STICKY))
        assert (failure.failure_class, failure.pattern, failure.hint) == (
            FailureClass.TRANSIENT,
            "mine",
            "number 700, {as is}",
        )

    def test_a_text_cannot_write_into_the_hint_template(self):
        """Braces in a text end up in the hint as they are."""
        own = Pattern("mine", FailureClass.TRANSIENT, r"lib (?P<lib>\S+)(?P<no>x)?", "{lib} {no}")
        assert Classifier(extra=[own]).classify_text("lib {no.__class__}").hint == "{no.__class__} (unknown)"

    def test_patterns_can_be_replaced(self):
        """Given patterns take the place of the built-in ones."""
        assert Classifier(patterns=()).classify(RuntimeError(STICKY)).failure_class is FailureClass.UNKNOWN

    @pytest.mark.parametrize(("regex", "hint"), [("(", ""), ("a", "{missing}"), ("a", "{"), ("(a)", "{0}")])
    def test_a_broken_pattern_is_refused(self, regex, hint):
        """A pattern that cannot work is refused when it is made, by its name."""
        with pytest.raises(errors.ConfigurationError, match="'mine'"):
            Pattern("mine", FailureClass.TRANSIENT, regex, hint)


class TestHostileTexts:
    @pytest.mark.parametrize(
        "piece",
        [
            "a",
            "lib",
            "lib" + "a" * 39,
            "CUDA error 7",
            "Failed to load library ",
            "CUBLAS",
            "worker 1",
            " ",
            "1",
            "\n",
        ],
    )
    def test_time_is_bounded(self, classifier, piece):
        """A text of 100 MB costs no more than its ends do, whatever it is made of."""
        text = piece * (100_000_000 // len(piece))
        started = time.process_time()
        failure = classifier.classify(RuntimeError(text))
        assert time.process_time() - started < 0.25
        assert len(failure.text) < 10_000

    def test_the_end_of_a_long_text_is_read(self, classifier):
        """What stands at the end of a long text is found."""
        assert classifier.classify_text("x" * 10**6 + STICKY).failure_class is FailureClass.POISONED

    def test_time_grows_with_the_length_only(self, classifier):
        """Four times the text takes about four times as long, not sixteen."""

        def cost(text):
            times = []
            for _ in range(5):
                started = time.process_time()
                for _ in range(10):
                    classifier.classify_text(text)
                times.append(time.process_time() - started)
            return min(times)

        for piece in ("lib", "CUBLAS", "Failed to load library ", "Available memory of 1"):
            assert cost(piece * (8000 // len(piece))) < 10 * cost(piece * (2000 // len(piece))) + 0.005


class TestVerdicts:
    def test_every_class_has_one(self):
        """There is a verdict for each class of failure."""
        assert set(VERDICTS) == set(FailureClass)

    @pytest.mark.parametrize(
        "failure_class", [FailureClass.CALLER, FailureClass.MODEL, FailureClass.CANCELLED]
    )
    def test_what_is_not_the_devices_fault_moves_nothing(self, failure_class):
        """Caller, model and cancellation never count, never retry, never go to the next device."""
        verdict = VERDICTS[failure_class]
        assert not any(
            (
                verdict.counts,
                verdict.opens_at_once,
                verdict.retry_same_device,
                verdict.split,
                verdict.fail_over,
            )
        )

    def test_everything_else_fails_over(self):
        """Whatever the device did, the next one may answer."""
        neutral = {FailureClass.CALLER, FailureClass.MODEL, FailureClass.CANCELLED}
        assert all(VERDICTS[cls].fail_over for cls in FailureClass if cls not in neutral)

    def test_a_hang_is_not_tried_again(self):
        """A device that did not answer is replaced, not asked again."""
        verdict = VERDICTS[FailureClass.HANG]
        assert (verdict.retry_same_device, verdict.replace_worker, verdict.opens_at_once) == (
            False,
            True,
            True,
        )

    def test_the_environment_is_not_respawned(self):
        """What a person has to install is not looked for by starting workers."""
        verdict = VERDICTS[FailureClass.ENVIRONMENT]
        assert (verdict.opens_at_once, verdict.replace_worker, verdict.healed_by) == (True, False, "human")

    def test_out_of_memory_is_a_matter_of_the_batch(self):
        """Memory does not count by itself: a smaller batch may heal it, after the context was probed."""
        verdict = VERDICTS[FailureClass.OOM]
        assert (verdict.counts, verdict.split, verdict.probe_first) == (False, True, True)

    @pytest.mark.parametrize("verdict", VERDICTS.values())
    def test_verdicts_are_consistent(self, verdict):
        """What opens at once counts, and is not tried again on the device."""
        assert verdict.counts or not verdict.opens_at_once
        assert not (verdict.opens_at_once and verdict.retry_same_device)
        assert not (verdict.replace_worker and verdict.healed_by in ("retry", "smaller_batch"))
