"""The problems in COCO files that :mod:`coco_json` finds: whether each stops a run, and its message."""

__all__ = ["COCO_KINDS"]

# Kind -> level and text, in which "{n}" is the count.
COCO_KINDS = {
    "json": ("error", "no COCO instances JSON"),
    "no-annotations": ("error", "there are no annotations"),
    "image-entry": ("error", "images without id or file_name: {n}"),
    "image-size": (
        "error",
        "images whose width or height is not a whole number from 1 to a million (strings do not count): {n}; correct "
        "them",
    ),
    "image-id-twice": ("error", "image ids that occur twice: {n}; give each image its own"),
    "image-name-twice": (
        "warning",
        "images with the file_name of another one: {n}; each is read with its own annotations only: merge them",
    ),
    "image-id-large": (
        "error",
        "image ids from 2 ** 63 to 2 ** 64 - 1, which pycocotools confuses: {n}; write smaller ones, or strings",
    ),
    "image-id-mixed": ("error", "some image ids are numbers, others are strings; use one type"),
    "image-id-type": (
        "error",
        "annotations whose image_id is an image's id of another type: {n}; use one type",
    ),
    "image-unknown": ("repaired", "annotations whose image is not in the file, left out: {n}"),
    "category-entry": ("error", "categories without a whole number as id, or without a name: {n}"),
    "category-name": (
        "repaired",
        "category names with a line break, another control character or half a surrogate pair, which tables and logs "
        "cannot hold, written as \\n and such: {n}",
    ),
    "category-twice": ("error", "categories with the id or name of another one: {n}; give each its own"),
    "category-id-type": (
        "error",
        "annotations whose category_id is a category's id of another type: {n}; use one type",
    ),
    "category-unknown": (
        "error",
        "annotations whose category_id is not among the categories: {n}; add or correct them",
    ),
    "category-unused": ("warning", "categories without an annotation: {n}; each still counts as a class"),
    "annotation-entry": ("error", "annotations that are not objects with keys and values: {n}"),
    "annotation-id": ("repaired", "annotation ids that are missing or occur twice: {n}; all get new numbers"),
    "annotation-same": (
        "warning",
        "boxes that several annotations of one image and category have: {n}; was the file joined with itself?",
    ),
    "annotation-twice": ("repaired", "annotations repeated with the same id, box and mask, read once: {n}"),
    "box-missing": ("repaired", "annotations without a usable bbox, which is taken from the mask: {n}"),
    "box-type": ("error", "annotations whose bbox is not four numbers (x, y, width, height): {n}; correct them"),
    "boxes-xyxy": (
        "error",
        "boxes that look like x1, y1, x2, y2, but COCO has x, y, width, height: {n}; convert them, or, if they "
        "are right, set DATASETS.ACCEPT \"('boxes-xyxy',)\"",
    ),
    "boxes-relative": (
        "error",
        "boxes between 0 and 1, but COCO has pixels: all {n}; multiply them by width and height of their image",
    ),
    "box-relative": (
        "warning",
        "boxes between 0 and 1, as shares of the image would be, but COCO has pixels: {n}; multiply them by width and "
        "height of their image",
    ),
    "keypoints": ("repaired", "keypoints that are not a list of x, y, visibility for each point, left out: {n}"),
    "box-not-finite": ("repaired", "boxes with NaN or infinity, annotation left out: {n}"),
    "box-negative": ("repaired", "boxes of negative width or height, annotation left out: {n}"),
    "box-empty": ("repaired", "boxes without width or height, annotation left out: {n}"),
    "box-outside": ("repaired", "boxes outside their image, annotation left out: {n}"),
    "box-clipped": ("repaired", "boxes that reach over the border of their image by more than a pixel, clipped: {n}"),
    "box-rotated": (
        "warning",
        "rotated rectangles of CVAT, whose boxes are read as if they stood upright: {n}; export polygons or masks",
    ),
    "box-mask": (
        "warning",
        "boxes that have less than a quarter in common with the mask of their own annotation: {n}; polygons may be of "
        "another image size, or run lengths (RLE) counted along the rows instead of down the columns",
    ),
    "mask-missing": (
        "error",
        "annotations without a mask (segmentation missing, null or empty): {n}; set MODEL.MASK_ON False in a "
        "detector to train on boxes, or draw the masks, or leave these annotations out by DATASETS.ACCEPT "
        "\"('mask-missing',)\"",
    ),
    "mask-type": ("error", "segmentations that are neither polygons nor run lengths (RLE): {n}; correct them"),
    "mask-nan": ("error", "masks with coordinates that are NaN or infinite: {n}; correct them"),
    "mask-far": (
        "error",
        "masks with coordinates more than ten image sides away from their image: {n}; correct them, or leave these "
        "annotations out by DATASETS.ACCEPT \"('mask-far',)\"",
    ),
    "mask-no-pixel": ("warning", "masks that cover no pixel, which no prediction can match: {n}"),
    "polygon-short": ("repaired", "polygons of fewer than 3 points, left out: {n}"),
    "polygon-odd": ("repaired", "polygons with an odd count of coordinates, left out: {n}"),
    "polygon-flat": ("repaired", "polygons that enclose no area, left out: {n}"),
    "polygon-bare": (
        "repaired",
        "masks that are one list of numbers or of points instead of a list of lists of numbers, read as a polygon: {n}",
    ),
    "mask-unusable": ("repaired", "annotations without any usable polygon, left out: {n}"),
    "rle-size": (
        "error",
        "run-length masks whose size is not that of their image ([height, width]): {n}; correct them",
    ),
    "rle-damaged": (
        "error",
        "run-length masks whose runs are not whole numbers that add up to the pixels of their image: {n}; write them "
        "again",
    ),
    "area": ("repaired", "annotations without area, or with area 0, taken from mask or box: {n}"),
    "area-other": (
        "warning",
        "areas (of 1,000 at most that are looked at) that differ from the mask by more than a factor of 2, or do not "
        "fit the box: {n}; APs, APm and APl go by area: correct them, or delete the key to have it taken from mask or "
        "box",
    ),
    "iscrowd": ("repaired", "annotations without an iscrowd of 0 or 1, taken as 0: {n}"),
    "ignore": ("repaired", "annotations with ignore set, read as crowd: {n}"),
    "all-crowd": (
        "error",
        "all annotations are crowd (iscrowd 1), from which nothing can be learned: {n}; set iscrowd 0",
    ),
    "category-crowd": (
        "warning",
        "categories of which all annotations are crowd (iscrowd 1), so they are not learned: {n}; set iscrowd 0",
    ),
    "none-left": ("error", "no annotation is left to learn from or to score"),
}
