"""Programs of every kind have a worker, without doing anything for it, and leave nothing behind."""
import pytest
from host_kit import EMBED, finish, next_line

pytestmark = pytest.mark.slow
BOTH = "simulated simulated"

@pytest.mark.parametrize("options", [["-c", EMBED], ["-I", "-c", EMBED]])
def test_a_program_of_two_lines(place, options):
    """x."""
    assert place.run(*options).line() == BOTH

def test_fork(place):
    """x."""
    p = place.program("""
say(embed()); before = worker()
if (child := os.fork()) == 0:
    say(embed("a", "b")); say(worker().pid != before.pid, worker().restarts); os._exit(0)
os.waitpid(child, 0)
say(embed("c", "d"), worker() == before)
""")
    print(finish(p))
