"""Published datasets: their clients, sizes, layouts on disk and places on the hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...cache.common.progress import Progress

HF = "hf:"

SampleKind = Literal["images", "texts"]


def noun(samples: SampleKind) -> str:
    """Return the word for one sample: `image` or `text`."""
    return samples.removesuffix("s")


@dataclass(frozen=True)
class Columns:
    """The columns of a table of images or texts."""

    image: str = "image"
    text: str = "text"
    label: str = "label"
    domain: str = "domain"


@dataclass(frozen=True)
class Domain:
    """A domain of a known dataset: its folder names, and its number of samples if known."""

    client: str
    folders: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True)
class HubDataset:
    """A dataset's repository on the Hugging Face hub.

    Attributes:
        repository: ``owner/name``.
        split: The splits that make up the whole dataset, joined by ``+``.
        columns: The names of its columns.
        revision: The branch, tag or commit to read.
        client: The client of all rows, for a table without a domain column.
    """

    repository: str
    split: str = "train"
    columns: Columns = Columns()
    revision: str = "main"
    client: str | None = None


@dataclass(frozen=True)
class KnownDataset:
    """A published dataset, in the layouts in which it is distributed.

    Attributes:
        domains: Its domains; a folder with a folder for each of them is its root.
        size: Number of published samples; None if only known about.
        classes: Number of classes.
        licence: Its licence as stated by the source.
        names: Class names by the name of a folder or the label in a table, where these differ, for
            example numbers.
        hub: Its repository on the hub, if any.
        make: Creates the dataset in a folder, if the package can.
        samples: What it consists of.
    """

    domains: tuple[Domain, ...]
    size: int | None
    classes: int
    licence: str
    names: Mapping[str, str] = field(default_factory=dict)
    hub: HubDataset | None = None
    make: Callable[[Path, Progress], None] | None = None
    samples: SampleKind = "images"

    @property
    def source(self) -> str:
        """The source of the dataset for a machine that does not have it."""
        if self.hub is not None:
            return f"{HF}{self.hub.repository}"
        return "drawn here" if self.make is not None else "a folder of yours"


def _draw_demo(folder: Path, progress: Progress) -> None:
    from ..demo.dataset import draw_dataset

    draw_dataset(folder, progress)


DEMO = "demo"

# The product categories of Amazon Reviews 2023, in the order of their numbers in the table.
_AMAZON = (
    *("All_Beauty", "Toys_and_Games", "Cell_Phones_and_Accessories", "Industrial_and_Scientific"),
    *("Gift_Cards", "Musical_Instruments", "Electronics", "Handmade_Products"),
    *("Arts_Crafts_and_Sewing", "Baby_Products", "Health_and_Household", "Office_Products"),
    *("Digital_Music", "Grocery_and_Gourmet_Food", "Sports_and_Outdoors", "Home_and_Kitchen"),
    *("Subscription_Boxes", "Tools_and_Home_Improvement", "Pet_Supplies", "Video_Games"),
    *("Kindle_Store", "Clothing_Shoes_and_Jewelry", "Patio_Lawn_and_Garden", "Unknown", "Books"),
    *("Automotive", "CDs_and_Vinyl", "Beauty_and_Personal_Care", "Amazon_Fashion"),
    *("Magazine_Subscriptions", "Software", "Health_and_Personal_Care", "Appliances"),
    "Movies_and_TV",
)

# docs/datasets.md has the sources of the figures and licences.
KNOWN: Mapping[str, KnownDataset] = {
    # Venkateswara et al. 2017, "Deep Hashing Network for Unsupervised Domain Adaptation".
    "office-home": KnownDataset(
        (
            Domain("art", ("Art",), 2427),
            Domain("clipart", ("Clipart",), 4365),
            Domain("product", ("Product",), 4439),
            Domain("real_world", ("Real World", "Real_World", "RealWorld"), 4357),
        ),
        size=15588,
        classes=65,
        licence="fair use notice",
        hub=HubDataset("flwrlabs/office-home"),
    ),
    # Li et al. 2017, "Deeper, Broader and Artier Domain Generalization".
    "pacs": KnownDataset(
        (
            Domain("art_painting", ("art_painting",), 2048),
            Domain("cartoon", ("cartoon",), 2344),
            Domain("photo", ("photo",), 1670),
            Domain("sketch", ("sketch",), 3929),
        ),
        size=9991,
        classes=7,
        licence="unknown",
        hub=HubDataset("flwrlabs/pacs"),
    ),
    # Fang et al. 2013, "Unbiased Metric Learning"; DomainBed uses other names.
    "vlcs": KnownDataset(
        (
            Domain("caltech", ("CALTECH", "Caltech101"), 1415),
            Domain("labelme", ("LABELME", "LabelMe"), 2656),
            Domain("pascal", ("PASCAL", "VOC2007"), 3376),
            Domain("sun", ("SUN", "SUN09"), 3282),
        ),
        size=10729,
        classes=5,
        licence="unknown",
        names={"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"},
    ),
    # Peng et al. 2019, "Moment Matching for Multi-Source Domain Adaptation".
    "domainnet": KnownDataset(
        tuple(
            Domain(name, (name,))
            for name in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
        ),
        size=586575,
        classes=345,
        licence="other",
        hub=HubDataset("wltjr1007/DomainNet", split="train+test"),
    ),
    # Zhang et al. 2015, "Character-level Convolutional Networks for Text Classification".
    "ag-news": KnownDataset(
        (Domain("ag_news"),),
        size=127600,
        classes=4,
        licence="unknown",
        hub=HubDataset("fancyzhx/ag_news", split="train+test", client="ag_news"),
        samples="texts",
    ),
    # Lang 1995, "NewsWeeder: Learning to Filter Netnews", sorted by date. The repository has JSON
    # files, of which the hub keeps a copy in Parquet.
    "20newsgroups": KnownDataset(
        (Domain("20newsgroups"),),
        size=18846,
        classes=20,
        licence="unknown",
        hub=HubDataset(
            "SetFit/20_newsgroups",
            split="train+test",
            columns=Columns(label="label_text"),
            revision="refs/convert/parquet",
            client="20newsgroups",
        ),
        samples="texts",
    ),
    # Hou et al. 2024, "Bridging Language and Items for Retrieval and Recommendation"; the reviews
    # with one and with five stars, of which the repository has a sample.
    "amazon-reviews": KnownDataset(
        tuple(Domain(name.lower(), (name, str(row))) for row, name in enumerate(_AMAZON)),
        size=None,
        classes=2,
        licence="unknown",
        names={"1": "negative", "5": "positive"},
        hub=HubDataset(
            "canrager/amazon_reviews_mcauley_1and5",
            split="train+test",
            columns=Columns(label="rating", domain="category"),
        ),
        samples="texts",
    ),
    # Drawn by this package.
    DEMO: KnownDataset(
        tuple(Domain(style, (style,), 300) for style in ("cartoon", "neon", "photo", "sketch")),
        size=1200,
        classes=10,
        licence="MIT",
        make=_draw_demo,
    ),
}
