import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier

class Classifier(context: Context) : AutoCloseable {
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifier.ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath("model.tflite").build())
            .setMaxResults(5)
            .build(),
    )

    /** Labels and scores, best first. The bitmap must be ARGB_8888; its size does not matter. */
    fun classify(bitmap: Bitmap): List<Pair<String, Float>> =
        classifier.classify(BitmapImageBuilder(bitmap).build())
            .classificationResult()
            .classifications()
            .first()
            .categories()
            .map { it.categoryName() to it.score() }

    override fun close() = classifier.close()
}
