"""The workers of a service: one for each card, made when it is needed, ended together."""

from __future__ import annotations

import pytest

from resilient_ai._workers.host.house import WorkerHouse
from resilient_ai.errors import ServiceClosed
from worker_kit import EMBEDDER, RANKER, Workplace, in_thread, outcomes


@pytest.fixture
def hired():
    """A house of two cards, and the workplaces it hired so far by card."""
    places = {}

    def hire(card):
        assert card not in places, "a second worker on a card"
        places[card] = Workplace()
        return places[card].worker

    yield WorkerHouse([0, 1], hire), places
    for place in places.values():
        place.close()


def test_a_model_has_a_backend_on_each_card(hired):
    """In the cards' order; nobody is hired before a model asks."""
    house, places = hired
    assert places == {}
    backends = house.backends(EMBEDDER, limit=7.0)
    assert [backend.worker for backend in backends] == [places[0].worker, places[1].worker]
    assert all(place.processes == [] for place in places.values())


def test_models_share_the_worker_of_a_card(hired):
    """A second model gets the same workers, and is loaded into the same process."""
    house, places = hired
    for model in (EMBEDDER, RANKER):
        house.backends(model, limit=7.0)[0].prepare()
    assert len(places[0].processes) == 1
    assert set(places[0].worker.state().models) == {EMBEDDER.name, RANKER.name}


def test_models_that_come_at_once_share_it_too(hired):
    """Of many that ask at the same time each gets the one worker."""
    house, _ = hired
    got = outcomes([in_thread(house.backends, model, limit=7.0) for model in (EMBEDDER, RANKER) * 4])
    assert len({backend.worker for backends in got for backend in backends}) == 2


def test_closing_ends_every_worker(hired):
    """Also again; and whoever still loads a model gets no worker that nobody would end."""
    house, places = hired
    for backend in house.backends(EMBEDDER, limit=7.0):
        backend.prepare()
    house.close()
    house.close()
    assert all(place.process.ended.is_set() for place in places.values())
    with pytest.raises(ServiceClosed):
        house.backends(RANKER, limit=7.0)


def test_a_house_that_was_never_lived_in(hired):
    """It can be closed, and hires nobody afterwards."""
    house, places = hired
    house.close()
    with pytest.raises(ServiceClosed):
        house.backends(EMBEDDER, limit=7.0)
    assert places == {}
